use grove::cell::{Local, Options, Paths, create};
use grove::dashboard::api::{ApiRequest, Body, Method};
use std::net::IpAddr;
fn main() {
    struct L; impl log::Log for L { fn enabled(&self,_:&log::Metadata)->bool{true} fn log(&self,r:&log::Record){ if r.level()<=log::Level::Info || std::env::var("V").is_ok() {eprintln!("{} {}",r.level(),r.args())} } fn flush(&self){} }
    static LL: L = L; let _=log::set_logger(&LL); log::set_max_level(log::LevelFilter::Debug);
    let a: Vec<String> = std::env::args().collect();
    let paths = Paths { dir: a[1].clone().into(), home: a[2].clone().into() };
    if a[3]=="init" { println!("{:?}", create(&paths, Some("x"), None)); return; }
    let mut l = Local::open(&paths, &Options::default()).unwrap();
    let mut call = |m, path: &str, query: Vec<(String, Vec<u8>)>, body: &str| {
        let r = l.call(ApiRequest{method:m, path: path.split('/').filter(|s|!s.is_empty()).map(|s|s.as_bytes().to_vec()).collect(), query, content_type:None, range:None, body: body.as_bytes().to_vec(), authorized:true, client: IpAddr::from([127,0,0,1])});
        let t = match r.body { Body::Bytes(b)=>String::from_utf8_lossy(&b).into_owned(), Body::Stream{..}=>"stream".into() };
        (r.status, t)
    };
    let m = if a[3]=="GET" {Method::Get} else {Method::Post};
    let q = a.get(6).map(|q| q.split('&').filter(|s|!s.is_empty()).map(|kv|{let (k,v)=kv.split_once('=').unwrap();(k.to_string(),v.as_bytes().to_vec())}).collect()).unwrap_or_default();
    let (s,t) = call(m, &a[4], q, a.get(5).map(|s|s.as_str()).unwrap_or(""));
    if s==202 { let id: String = t.chars().filter(|c|c.is_ascii_digit()).collect();
        loop { let (_,t)=call(Method::Get, &format!("/api/v1/jobs/{id}"), vec![("wait_ms".into(), b"1000".to_vec())], ""); if !t.contains("\"running\"") { println!("{t}"); break; } } }
    else { println!("{s} {t}"); }
}
